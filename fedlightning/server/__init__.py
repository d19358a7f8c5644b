"""What the server does with what clients send, and what it keeps."""
