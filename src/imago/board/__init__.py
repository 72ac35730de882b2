"""The board: run directories of any age, side by side. Reads files alone: no torch, no data, no model.

``find`` where runs lie → ``records`` what each left → ``board`` what may be compared with what → ``text`` and ``page``.
``claims`` asks a board what the lecture asks → ``claims_page``.
"""
