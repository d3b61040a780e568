"""Pictures and pages as self-contained HTML: no network, no script, readable in light and dark. Shared by stages that show something."""
