"""A server of the 21 tasks over HTTP: an own protocol, and those of rembg, remove.bg and OpenAI's images.

In the order of imports: `config` (limits), `refusals` (errors and their status), `keys`, `fetching` (pictures by URL),
`results` (formats), `calls` (a checked request), `jobs` (the queue), `engine` (a model on a device), `worker` (the
thread that runs jobs), `metrics`, `state` (all of these together), `forms` (what a request holds), `native`, `pictures`
(what the others do with a cut-out), `rembg`, `removebg`, `openai_images` (the protocols), `guards` (what stands before
them), `app`, `running`.
"""
