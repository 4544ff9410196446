from transformers_glipv2.conversion.convert_glip_checkpoint import main

main()
