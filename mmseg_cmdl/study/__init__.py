"""Does a method help on this data, and by how much? What tools/study.py is made of.

======================== ===================================================================
``plan``                 arms, seeds and configs of a study; what its folder may be reused for
``controls``             memory heads without their memory, for comparison
``recorder``             hook and metric that leave one small result file of each job
``jobs``                 runs the jobs side by side, goes on where a study was stopped
``statistics``           intervals of differences, and what may be said of them
``report``               tables, words and one HTML page
======================== ===================================================================
"""
