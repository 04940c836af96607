//! What an agent does where ICE finds no path.
