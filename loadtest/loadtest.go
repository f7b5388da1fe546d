// Package loadtest finds out what a server carries. It sends requests when they are due, however many are still open
// (an open loop), and counts latency from the time a request was due: a server that stalls cannot hide the requests
// that would have come meanwhile (coordinated omission).
//
// A tour: a Schedule (schedule.go, trace.go) says when requests are due, a Mix (mix.go, lengths.go, image.go) what
// they are; a Target (target.go, grpc.go, openai.go) answers them; Run (run.go) makes a Sample of each. Summarize
// (summary.go, slo.go) turns samples into numbers, Search (search.go) finds the highest rate that keeps a promise, and
// a Report (report.go) is what is kept: JSON, text, or one HTML page with plots (html.go, plot.go), compared with an
// earlier one (compare.go).
package loadtest
