//go:build !race

package cel

const slowdown = 1
