"""Does the file hold its plan, and does the runtime compute it?"""
