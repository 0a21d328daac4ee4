// Package noise measures the noise of one MR image from the image alone.
package noise
