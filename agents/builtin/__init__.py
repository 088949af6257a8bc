"""The agents that come with Askfirst, one folder each: agent, rules, data and the labelled set for its quality."""
