"""What is lost: outputs compared part by part, each part relative to its own variation."""
