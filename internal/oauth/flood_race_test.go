//go:build race

package oauth

const floodSize = 50_000 // the race detector makes the million a minute
