"""Decode on llama.cpp's llama-server.

settings    what may be configured
slotfile    the slot file (state of one sequence) to the byte; its form is learned from a probe    pure
wire        completion requests and events as llama-server spells them                             pure
spelling    the token ids that llama-server leaves out of a stream inside a character              pure
slots       which request runs in which slot                                                       pure
images      private slot files that a handoff fills and llama-server restores
host        the child process: the wheel ``xllamacpp``, or any ``llama-server`` binary
process     starts and watches that child
client      HTTP to llama-server, cheap per token
probe       learns the slot file's form at start-up
takeover    a handoff's KV into a slot: filled, checked, restored, confirmed
completion  one request's events into chunks
engine      LlamaCppDecode: the DecodeEngine made of the above
"""
