//go:build !race

package oauth

const floodSize = 1_000_000
