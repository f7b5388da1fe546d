package loadtest

var ReadEvents = readEvents
