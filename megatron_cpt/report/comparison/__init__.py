"""The comparison of several runs: what they were given, what they gained and forgot on the same items, and what they cost.

It reads records only and changes none. Runs that were not measured on the same base and items are never set against each other.
"""
