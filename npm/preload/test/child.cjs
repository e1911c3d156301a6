// Works for whoever sends it an id.
process.on('message', async (id) => {
  await (await fetch(`${process.env.PLAIN}/child?id=${id}`)).text()
  process.send(id)
})
