"""The networks: plain torch modules over rows that somebody else has pulled."""
