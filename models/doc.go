// Package models takes the noise off images.
//
// A Model, opened by Default or Open, has two ways to do so: Denoise, which runs its
// student once, and High, the full method. The networks are in package net, the files
// of a model in package store.
package models
