"""The manual's tools: its Sphinx directive, and its examples, which are run.

python3 -m tools.docs build FOLDER      # HTML; any warning is an error
python3 -m tools.docs update FILE...    # run the examples, and write down what they print now
"""
