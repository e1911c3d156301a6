// Package sallyport is the module's root: it holds no code. The program is
// cmd/sallyport; the packages a Go service imports are identity, bearer,
// bearergrpc and safedial. README.md opens the door, ARCHITECTURE.md draws the house.
package sallyport
