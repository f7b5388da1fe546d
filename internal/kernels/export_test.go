//go:build (amd64 && !windows) || (arm64 && linux)

package kernels

// Limit has the kernels of the least instructions used where better ones are there too; it tells whether there are.
var Limit = limit
