"""Report of a run: one HTML page that needs no network and no other file.

A section has four parts, all of the same name:

1. A frozen dataclass with what the section shows, and its builder ``build_<name>(facts)``
   in ``sections/``. The builder reads ``RunFacts`` alone and returns None where a run lacks what
   the section is about; nothing is drawn then.
2. A template ``templates/sections/<name>.html.j2``, which finds the dataclass as ``section``.
3. A row of ``SECTIONS`` in ``section_registry.py``: name, title of the heading and of the entry in
   the navigation, and builder. The order of the rows is that of the page.
4. What ``RunFacts`` lacks is read from the run folder in ``finetune/commands/report/`` and added to
   it as a field with a default.

Styles belong into ``assets/report.css``, behaviour into ``assets/report.js``; a section must be
readable without the script. Numbers are formatted by the filters of ``number_formats.py``.
"""
