"""timm networks with their layer groups, a linear head, and freezing by depth."""
