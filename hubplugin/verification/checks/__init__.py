"""What is looked at, one file for each subject. A check is a function of a `Subject`, and a row of CHECKS above.

A check yields nothing where it does not concern the model, and raises what keeps it from looking.
"""
