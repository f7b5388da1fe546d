package loadtest

var (
	ReadEvents = readEvents
	Gauges     = gauges
	Stamp      = Picture.stamp
)
