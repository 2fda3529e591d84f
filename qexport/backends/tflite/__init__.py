"""TFLite/LiteRT: conversion with litert-torch, what is changed before and after it, and reading the flatbuffer."""
