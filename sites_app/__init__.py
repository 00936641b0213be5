"""Sites, nodes, the documents nodes should have, and the tokens which open sites."""
