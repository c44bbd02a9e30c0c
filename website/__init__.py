"""What the documentation is made of, beside the pages in `docs/`: `python -m mkdocs build` writes it to `site/`.

- `hooks` is all that MkDocs knows of it: before a build, `writer` expands the pages of `docs/` into `build/docs`.
- `writer` gives each page, a template of Jinja's, the functions of the other three by name.
- `about` says of a loss, a miner, a distance or a metric what catalogue, signature, docstring and benchmarks know.
- `pictures` draws the real functions. A picture is kept in `build/pictures` as long as the package stays as it is.
- `loss_tables` lists all losses of a kind.
- `measured` reads numbers and tables from what benchmarks saved, `docs/measured/*.json`; `readme_pictures` draws the
  three pictures of README and start page from the same.
- `notebooks` makes pages of `docs/notebooks`; `python -m website.notebooks` runs those, and saves what they show.
- `docstrings` makes lists and links of the plain text of docstrings.
"""
