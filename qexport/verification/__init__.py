"""Does the file hold its plan, does the runtime compute it, and is the file still what was verified?"""
