"""What goes over the wire: request bodies and answers, with examples for the OpenAPI document."""
