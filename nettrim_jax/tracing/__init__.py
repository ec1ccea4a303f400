"""The network as a program: its layers, found in the jaxpr; knows no solver."""
