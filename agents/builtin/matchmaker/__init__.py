"""The matchmaker: who offers what somebody else needs. Rules decide, a model only where they are unclear."""
