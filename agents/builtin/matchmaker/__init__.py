"""The matchmaker: who offers what somebody else needs. Rules decide the clear pairs, a model only the grey band."""
