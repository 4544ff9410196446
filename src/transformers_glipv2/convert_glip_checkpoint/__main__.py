from transformers_glipv2.convert_glip_checkpoint import main

main()
