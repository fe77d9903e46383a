"""Does a method help on these data, and by how much? The modules behind tools/study.py.

======================== ===================================================================
``plan``                 arms, seeds and configs of a study; when its folder can be continued
``controls``             memory heads without their memory, for comparison
``recorder``             hook and metric that leave one small result file of each job
``jobs``                 runs the jobs side by side, continues an interrupted study
``statistics``           intervals of differences, and what may be said of them
``report``               tables, words and one HTML page
======================== ===================================================================
"""
