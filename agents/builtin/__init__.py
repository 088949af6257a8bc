"""The agents that come with Askfirst, each in a folder with its rules, its data and its labelled set."""
