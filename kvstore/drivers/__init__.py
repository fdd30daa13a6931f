"""The backends, one module each. A module is imported when it is named, its client library when it connects."""
