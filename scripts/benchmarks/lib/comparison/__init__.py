"""Parts of recipe.py: the study, its image folders, processes, tools, results and summary."""
