"""What a campaign looks like: views of its store, drawn by the dashboard and by the report."""
