"""The vocabulary of SPMD graphs: meshes, placements, collectives, op rules, text form."""
