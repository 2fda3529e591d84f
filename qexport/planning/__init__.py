"""Runtime table + statistics → dtype, scale, zero point and a why for every tensor."""
