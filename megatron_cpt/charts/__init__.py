"""Charts and pages as self-contained HTML, readable in light and dark: pictures without a script, Plotly where scripts run. No network."""
