//! The layers within async-openai, whose requests are recipes: each attempt makes one anew, files and all.
