//go:build !unix

package main

// connectionLimit is most where processes have no limit of descriptors.
func connectionLimit(most int) int { return most }
