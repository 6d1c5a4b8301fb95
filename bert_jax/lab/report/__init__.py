"""Pages about runs and studies, as HTML, Markdown, LaTeX and CSV."""
