"""What a server answers with, apart from how it is distributed: protocol, limits, one engine."""
