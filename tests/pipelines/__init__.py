"""What diffusers' pipelines do with a quantized network: every line of the tables in docs/pipelines.md, tried.

python -m tests.pipelines                    # try all lines, write the tables
python -m tests.pipelines "Wuerstchen"       # only lines with this in their name, nothing is written
"""
