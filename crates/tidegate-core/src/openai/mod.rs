//! OpenAI's words into ours: endpoints, estimates, limits in headers, faults, usage. Pure parsing of what it is handed.
