//go:build race

package cel

// slowdown is the factor by which the race detector raises the bounds of an evaluation.
const slowdown = 10
