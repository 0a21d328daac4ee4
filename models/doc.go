// Package models holds the networks, their weights files and where they come
// from.
//
// A Model is a network with its Card, opened by Default or Open; its Student is
// the network itself, which maps an image and a map of its noise to the image
// with the noise taken off. The file student.go is the whole definition of it.
package models
