"""What only the two papers need: their experiments, tables, figures, claims and campaign."""
