"""One room for each reproduced paper; a paper never imports another paper."""
